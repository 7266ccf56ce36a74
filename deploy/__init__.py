"""What carries the appliance onto servers."""
