"""From resolved settings to the core: what a command puts together between its settings and its report."""
