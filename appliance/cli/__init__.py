"""Words in, one flow, words out: the only code that prints, prompts or exits. One file per noun."""
