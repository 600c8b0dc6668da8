"""Checks of the engine on a device, in parts that are saved one by one."""
