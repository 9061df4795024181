"""Says what a package says that the build fetches."""

import six


def main(context):
    return context.res.text(six.ensure_str(b"six"))
