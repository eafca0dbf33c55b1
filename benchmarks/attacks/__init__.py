"""Attacks and hard honest clients against real models, judged by the detectors: `python -m benchmarks.attacks`."""
