"""Devices, the ways to reach them, and what is done with them there."""
