"""What can be wrong with a hash tree, its parameters, or a signature over its root."""

from lazyfs.errors import FormatError, UsageError, VerificationFailed


class BadParameters(UsageError):
    """Block sizes, a salt or an algorithm that no tree can have, or that do not fit together."""

    code = "E_VERITY_PARAMETERS"


class BadSuperblock(FormatError):
    """What stands where a superblock is expected is none, or contradicts what is known."""

    code = "E_VERITY_SUPERBLOCK"


class Mismatch(VerificationFailed):
    """A block does not have the digest that the tree, or the root, states."""

    code = "E_VERITY"


class BadRootSignature(VerificationFailed):
    """A signature over a root is not of the kernel's form, or nobody trusted has made it."""

    code = "E_VERITY_SIGNATURE"
