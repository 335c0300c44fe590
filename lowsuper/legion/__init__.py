"""The Legion: which of several nodes is the lord, and so may run a legion's daemons.

`packet` has the wire format, `election` the decisions, both pure; `cipher` closes and opens
packets; `agent` is the process that does this for a master: by its `orders` it opens `sockets`,
gives up its privileges (`confine`) and carries out the election (`udp`); `etcd` is the election
through an etcd cluster; `words` what agent and master say to each other.
"""
