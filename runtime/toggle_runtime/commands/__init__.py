"""What a host may ask for: a module for each part of the device, a function for each command."""
