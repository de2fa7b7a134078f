"""Noise forward, and one exact reverse step: masked and Gaussian processes, schedules, times, keyed noise."""
