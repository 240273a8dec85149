"""Any checkpoint file to a state_dict and a config, with a strict report."""
