"""The messages of proto/checkpointd/v1, from the descriptors that buf made of them.

In a pool of their own, and without generated code: that would demand the newest protobuf runtime,
while these work with any from 4.25 on. `npm run gen` makes the descriptors and this module's stub.
"""

import pkgutil

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_pool = descriptor_pool.DescriptorPool()
_files = descriptor_pb2.FileDescriptorSet.FromString(
    pkgutil.get_data("checkpointd", "descriptors.binpb") or b""
)
for _file in _files.file:
    _pool.AddSerializedFile(_file.SerializeToString())
for _file in _files.file:
    if _file.package.startswith("checkpointd."):
        _names = _pool.FindFileByName(_file.name)
        for _name, _message in _names.message_types_by_name.items():
            globals()[_name] = message_factory.GetMessageClass(_message)
        for _enum in _names.enum_types_by_name.values():
            for _value in _enum.values:
                globals()[_value.name] = _value.number
