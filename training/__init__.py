"""Headless: weights are made here. Nodes and command line call the same functions."""

from ..models_info.headless import tell_host_of_devices

tell_host_of_devices()
