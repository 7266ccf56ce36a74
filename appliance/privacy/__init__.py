"""What the guarantee is: the plan, its accounting, the budget it spends and the journal that says what was spent."""
