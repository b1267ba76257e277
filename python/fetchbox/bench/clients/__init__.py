"""Small downloaders to compare with, each a program of its own: `python FILE URL_LIST OUT CONCURRENCY`. They import nothing of ours."""
