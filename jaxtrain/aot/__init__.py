"""An update compiled ahead of time, also for TPUs that aren't here. This folder has no twin."""
