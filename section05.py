# ruff: noqa
# A section for notebook 05, in place of its last one ("6. Your numbers are not the book's?"). It uses from
# the cells above it: ratings, item, as_in_the_book, CollabDataLoaders, collab_learner, and of step 5
# `loaders`, the curves by loader. Delete this file when it is in the notebook.

# %% [markdown]
# ## 6. Your numbers are not the book's?
#
# `diagnose` looks at your own Learner, before or after fitting, and lists what differs from the chapter's run that it is most like. It says what each difference does to the final validation loss, as this package measured it: the mean over ten seeds, each against the chapter's model on the same seed, with a 95 % interval. Here is `collab_learner` as one writes it from memory, untrained:

# %%
from collab_repro import diagnose

dls = CollabDataLoaders.from_df(ratings, item_name=item, bs=128)
diagnose(collab_learner(dls, n_factors=30, y_range=(0, 5.5), wd=0.01))

# %% [markdown]
# If you have only the table that a training printed, `diagnose` names the runs of the chapter that it fits. It takes the text as you copied it, a DataFrame, or rows of two losses. This is the default loader's curve from step 5, in fastai's print:

# %%
if as_in_the_book:
    mine = loaders[loaders["model"] == "TabWeightedDL"]
    text = mine[["epoch", "train_loss", "valid_loss"]].to_string(index=False)
    print(text, end="\n\n")
    print(diagnose(text))

# %% [markdown]
# `distance` is in standard deviations between splits, over all ten losses at once: about 1 for a run of that kind, 2.5 and more for none. `probability` compares the sixteen kinds with each other, eight runs with either loader. Runs 4, 5 and 6 train the same model, so no table of losses can tell them apart.
#
# The same in a picture. Shaded is where 20 splits lie when each row comes once an epoch (mean ± 2 sd), hatched where they lie when rows are drawn with replacement:

# %%
from collab_repro.evidence.figures import plot_over_band

if as_in_the_book:
    plot_over_band(mine, run=6)
    plt.show()

# %% [markdown]
# How far can one trust the names? The distributions are from splits 0 to 19. On further splits (ten of each dot-product run, five of the networks, with either loader) the loader was named rightly in all 140 trainings, and the run in all but one, if 4, 5 and 6 count as one: a CollabNN with replacement was taken for EmbeddingNN. `python -m collab_repro chapter --effects --splits 30` trains all of this again and prints who was taken for whom. Of the book's own tables each is named rightly, and table 1 as it is reprinted today is named run 2, as in step 2:

# %%
for name, table in [*published().groupby("run"), ("1, reprinted", published(1, reprinted=True))]:
    print(f"table {name}: {diagnose(table).verdict}")

# %% [markdown]
# Two more reasons that neither finds: another split moves the final validation loss by about a hundredth (step 1 has the standard deviations, and the book's split is not fixed), and the current version of the book's notebook prints another run as its first table (step 2).
#
# `python -m collab_repro chapter` trains the eight runs on ten splits and prints every epoch of every table; the [README](../README.md) has the other commands.
#
# Next: [09_every_difference](09_every_difference.ipynb) reverts every difference between the two `DotProductBias` models, one at a time.
