"""The stages: functions from files to files, resumable, each output with a manifest."""
