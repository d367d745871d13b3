"""The descriptor pool of the protocols that kwise did not define.

A process has one default pool, in which a message may be defined once. `tritonclient` defines
`inference.ModelInferRequest` there, and `tei-client` `tei.v1.InfoRequest`. kwise's own definitions
of these messages are in a pool of their own, so that a client library and a server of kwise may run
in one process, in whichever order they are imported.
"""

from google.protobuf.descriptor_pool import DescriptorPool

POOL = DescriptorPool()
