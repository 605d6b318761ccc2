"""Images, videos and sounds: told apart, compared with a reference, and drawn."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from eval.consistency import compute, image_mse, image_ssim, over_frames, spectral_error, waveform_error
from eval.media import medium_of, pictures, spectrogram
from eval.observation import Observation
from eval.run import check_medium
from eval.types import Context, Subject


def draw(*shape: int) -> Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def tone(frequency: float, amplitude: float = 1.0, length: int = 4096) -> Tensor:
    return amplitude * torch.sin(2 * math.pi * frequency * torch.arange(length) / length).expand(1, 1, -1)


def compared(reference: Tensor, other: Tensor) -> dict[str, float]:
    context = Context({"dense": Subject(), "pruned": Subject()}, batch_size=2)
    seen = {
        name: {"samples": Observation({"samples": samples})}
        for name, samples in (("dense", reference), ("pruned", other))
    }
    return compute(context, seen)["pruned"]


def test_media_are_told_apart_by_type_and_axes():
    assert medium_of(draw(2, 3, 4, 4)) == "image"
    assert medium_of(draw(2, 5, 3, 4, 4)) == "video"
    assert medium_of(torch.zeros(2, 1, 8)) == "sound"
    with pytest.raises(ValueError, match=r"mine must be images, .* found torch.float32 \(2, 3, 4, 4\)"):
        medium_of(torch.zeros(2, 3, 4, 4), "mine")
    with pytest.raises(ValueError, match="samples hold NaN or infinity"):
        medium_of(torch.full((1, 1, 2), math.inf))


def test_distances_of_images_take_nothing_else():
    check_medium(["fid", "kid", "consistency", "latency"], draw(1, 3, 4, 4))
    check_medium(["consistency", "latency", "cost"], draw(1, 5, 3, 4, 4))
    message = "the metric '{}' judges images, and the model makes {}s; leave it out"
    with pytest.raises(ValueError, match=message.format("fid", "video")):
        check_medium(["consistency", "fid"], draw(1, 5, 3, 4, 4))
    with pytest.raises(ValueError, match=message.format("kid", "sound")):
        check_medium(["kid"], torch.zeros(1, 1, 8))


def test_videos_are_compared_frame_by_frame():
    one, two = draw(3, 20, 3, 12, 12), draw(3, 20, 3, 12, 12).flip(0)
    found = compared(one, two)
    by_frame = [
        [image_ssim(a[None], b[None]) for a, b in zip(x, y, strict=True)]
        for x, y in zip(one, two, strict=True)
    ]
    assert found["ssim"] == pytest.approx(float(torch.tensor(by_frame).mean()))
    assert found["mse"] == pytest.approx(float((one.double() / 255 - two.double() / 255).square().mean()))
    assert found["ssim_window"] == 11
    assert compared(one, one)["ssim"] == pytest.approx(1.0)
    assert torch.equal(over_frames(image_mse, one, one), torch.zeros(3, dtype=torch.float64))


def test_sounds_are_compared_by_wave_and_by_spectrum():
    """Half as loud: a quarter of the energy is missing, half of every magnitude. Shifted: the spectrum stays."""
    assert float(waveform_error(tone(400, 0.5), tone(400))) == pytest.approx(0.25)
    assert float(spectral_error(tone(400, 0.5), tone(400))) == pytest.approx(0.5)
    shifted = tone(400).roll(5, -1)
    assert float(waveform_error(shifted, tone(400))) > 1
    assert float(spectral_error(shifted, tone(400))) < 0.01
    assert float(spectral_error(tone(900), tone(400))) > 1
    found = compared(torch.cat([tone(400), tone(300)]), torch.cat([tone(400), tone(300, 0.5)]))
    assert found["waveform_error"] == pytest.approx(0.125)
    assert found["spectral_error"] == pytest.approx(0.25)
    assert found["waveform_error_ci95"][0] < 0.125 < found["waveform_error_ci95"][1]
    assert "ssim" not in found


def test_a_silent_reference_leaves_the_plain_error():
    silent = torch.zeros(1, 2, 64)
    assert float(waveform_error(silent, silent)) == float(spectral_error(silent, silent)) == 0
    assert float(waveform_error(silent + 0.5, silent)) == pytest.approx(2 * 64 * 0.25)


@pytest.mark.parametrize("length", [1, 2, 3, 8, 1500])
def test_short_sounds_have_a_spectrum(length: int):
    found = spectrogram(torch.ones(2, 1, length))
    assert found.shape[:2] == (2, 1)
    assert bool(torch.isfinite(found).all())
    assert pictures(torch.ones(2, 1, length)).dtype == torch.uint8


def test_the_picture_of_a_video_is_four_of_its_frames():
    videos = torch.arange(9, dtype=torch.uint8).mul(20)[None, :, None, None, None].expand(2, 9, 3, 6, 5)
    found = pictures(videos)
    assert found.shape == (2, 3, 6, 4 * 5 + 3)
    assert found[0, 0, 0, [0, 6, 12, 18]].tolist() == [0, 60, 100, 160]
    assert found[0, 0, 0, [5, 11, 17]].tolist() == [255] * 3, "white between them"
    assert pictures(videos[:, :1]).shape == (2, 3, 6, 5)


def test_the_picture_of_a_sound_is_dark_where_it_is_loud():
    low, high = (pictures(tone(frequency, length=44_100))[0, 0].double() for frequency in (200, 9_000))
    assert low.shape == high.shape == (96, 169)
    assert int(low.mean(1).argmin()) > int(high.mean(1).argmin()), "low frequencies are at the bottom"
    assert float(low.min()) == 0
    assert float(low[0].mean()) > 200


def test_images_are_their_own_pictures():
    images = draw(2, 3, 4, 4)
    assert pictures(images) is images
