"""A run for trackers and onlookers: its log read while it grows, or after the fact.

Everything here reads the event log and the telemetry and writes nothing into the run folder, so the
clock and the evidence stay as they are.
"""
