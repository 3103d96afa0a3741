"""The chapter's Further Research: more columns, ratings as classes. The road can be read without it.

- columns: `with_columns`, who has rated a film, its genres and year, who the user is; bags: its model;
- classes: `stars_learner`, a probability for each star instead of one number, in four ways;
- figures: of both.
"""
