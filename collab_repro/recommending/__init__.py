"""Kept models, predictions, and what somebody should see next. The road can be read without it.

- learned: `Learned`, a model's tables in a plain file;
- predicting: `predict`, ratings from those tables;
- folding: `fold_in`, somebody new from their ratings alone, without training;
- unseen: `recommend`, the best titles that somebody has not rated, each with a reason;
- ranked: `ranking`, how well a model orders titles, against popularity and bias.

Nothing here imports torch or fastai, unless it is given a Learner.
"""
