"""What the study models need beyond the library: sinks made on purpose, sinks made impossible, captions, figures."""
