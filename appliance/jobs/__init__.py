"""What crosses the planes: the run directory, the privacy plan, and one module for each kind of job and its result."""
