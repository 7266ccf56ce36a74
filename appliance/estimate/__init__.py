"""What a run will need, told before it starts: memory and time, from the model's numbers and this machine's."""
