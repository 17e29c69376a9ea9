"""The zip archive that torch writes models in, opened without trusting it."""

import io
import zipfile
import zlib

from detectors.errors import ConversionError

ENTRIES_MAX = 100_000
"""A network with ten thousand layers has fewer tensors."""
PACKED_BYTES_MAX = 2**26
"""Tensors lie in the archive as they are; what is packed is code and lists, which are small."""


def entries(model: bytes) -> dict[str, bytes]:
    """Every file of the archive by its name, below the one folder that torch puts all in.

    Raises:
        ConversionError: no such archive, two files of one name, or more packed bytes than code can be.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(model)) as archive:
            listed = archive.infolist()
            if len(listed) > ENTRIES_MAX:
                raise ConversionError(f"the archive has more than {ENTRIES_MAX} files")
            packed = sum(each.file_size for each in listed if each.compress_type != zipfile.ZIP_STORED)
            # stored files may overlap in a crafted archive: together they must not exceed what is there
            plain = sum(each.file_size for each in listed if each.compress_type == zipfile.ZIP_STORED)
            if packed > PACKED_BYTES_MAX or plain > len(model):
                raise ConversionError("the archive would unpack to more than a model is")
            names = [each.filename.partition("/")[2] for each in listed]
            roots = {each.filename.partition("/")[0] for each in listed}
            if len(set(names)) != len(names) or len(roots) != 1:
                raise ConversionError("the archive is not one folder of files with names of their own")
            return {name: archive.read(each) for name, each in zip(names, listed, strict=True)}
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, RuntimeError, zlib.error) as error:
        raise ConversionError("the bytes are not an archive of torch") from error
