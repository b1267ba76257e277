#!/bin/sh
# The image's `fetchbox`. As the first process of a container it gets tini above it, which passes signals on from the first moment and
# collects the processes that others leave behind; under an init of somebody else's, or by `docker exec`, it is the command itself.
if [ "$$" = 1 ]; then
    exec tini -s -- /opt/fetchbox/bin/fetchbox "$@"
fi
exec /opt/fetchbox/bin/fetchbox "$@"
