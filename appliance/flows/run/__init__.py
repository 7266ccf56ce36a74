"""Training runs, in the order of their life: plan, reserve, self-test, train, settle; and who takes part in a start."""
