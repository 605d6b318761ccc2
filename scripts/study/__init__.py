"""The parts of the study of sink-awareness; `scripts/study_sinks.py` puts them together."""
