"""Trackers and notifications: who hears of a run beside its folder, each in a process of its own"""
