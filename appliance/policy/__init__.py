"""What is allowed and what is asked for: policy.yaml and run.yaml as frozen values, and one held to the other."""
