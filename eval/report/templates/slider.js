"use strict";
for (const box of document.querySelectorAll(".slider")) {
  const choice = box.querySelector("select"), range = box.querySelector("input");
  const stage = box.querySelector(".stage"), ends = box.querySelectorAll(".end");
  const names = [], pictures = [];
  for (const image of box.parentElement.querySelectorAll("img[data-of]")) {
    (pictures[image.dataset.of] ??= []).push(image);
    names[image.dataset.of] = image.alt.slice(0, image.alt.indexOf(", sample "));
  }
  const move = () => {
    stage.style.setProperty("--at", range.value + "%");
    const [left, right] = [...ends].map((end) => end.textContent);
    range.setAttribute("aria-valuetext", `${range.value} % ${left}, ${100 - range.value} % ${right}`);
  };
  const show = () => {
    const two = choice.value.split(" ");
    two.forEach((of, side) => { ends[side].textContent = names[of]; });
    stage.replaceChildren(...pictures[two[0]].map((_, column) => {
      const pair = document.createElement("div");
      pair.className = "pair";
      pair.append(...two.map((of) => {
        const image = pictures[of][column].cloneNode();
        delete image.dataset.of;
        return image;
      }));
      return pair;
    }));
    move();
  };
  const drag = (event) => {
    const pair = event.target.closest(".pair");
    if (!pair || !(event.buttons & 1)) return;
    const place = pair.getBoundingClientRect();
    range.value = Math.round(100 * (event.clientX - place.left) / place.width);
    move();
  };
  stage.addEventListener("pointerdown", drag);
  stage.addEventListener("pointermove", drag);
  stage.addEventListener("dragstart", (event) => event.preventDefault());
  range.addEventListener("input", move);
  choice.addEventListener("change", show);
  if (pictures.length > 1) {
    show();
    box.hidden = false;
  }
}
