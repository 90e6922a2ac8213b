"""What a run keeps: its folder, whole files, the clock, memory used, metrics for a tracker."""
