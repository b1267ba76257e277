"""The measuring code behind `fetchbox bench` and `benches/`: process trees, a static origin, load, tables and results.

Nothing of the service imports this package.
"""
