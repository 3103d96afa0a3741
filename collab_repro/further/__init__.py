"""The chapter's Further Research: other columns of the ratings, ratings as classes. The road needs none of it.

- columns: `with_columns`, DotProductBias told who has rated a film, its genres, its year, the user's age, ...;
- classes: `with_stars`, a probability for each star instead of one number, in four ways, and their judges.
"""
