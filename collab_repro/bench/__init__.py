"""What training costs, next to stock fastai and other libraries. Nothing else in the package uses this.

- ways: one epoch of the chapter's model, trained in several ways, the whole main command, and starting up;
- sizes: time and memory as the ratings grow to 25 million;
- accuracy: RMSE next to other libraries, and how our settings were chosen;
- benchmarks: published RMSE by protocol, beside ours and other libraries' with the extra columns;
- printing: `python -m collab_repro bench`, its tables and CSV files.

All numbers are measured where the command runs. Machines differ and are shared, so compare the ratios.
"""

# Of the command; the last two only when asked for.
PARTS = ["startup", "loops", "main", "accuracy", "scale", "published", "tuning"]
