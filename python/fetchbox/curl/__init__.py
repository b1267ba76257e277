"""The curl transport: pycurl's multi socket interface on an event loop, for what the engine does not speak itself.

The engine decides what is asked for and when, vets addresses, follows redirects, and stores, counts and judges what comes; this package
makes the requests. Nothing here is loaded unless a job type says `transport = "curl"`; `fetchbox.config.curl` tells whether it can be.
"""
