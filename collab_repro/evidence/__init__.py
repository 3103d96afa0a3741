"""Why the version without nn.Embedding works, and how sure one can be of the results.

- lookups: four ways to look up rows of a table, their common derivative, and what each costs;
- ablations: every difference between the two DotProductBias models, reverted one at a time;
- eight_runs: the chapter's eight runs trained over many splits and compared with the book;
- stability: how far models trained from several seeds agree on biases and neighbours;
- diagnosis: `diagnose`, why a run's losses are not the book's; inspecting: what it sees of a Learner;
  effects: how its tables of effects and spreads were measured;
- figures: the plots of these results; picture: rows copied out of a table, and gradients added back.

You can read the rest of the package without this folder: only the `chapter` and `plots` commands use it.
"""
