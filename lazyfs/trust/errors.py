"""What can be wrong with signatures, with what they are judged by, and with a verdict."""

from lazyfs.errors import FormatError, Unavailable, UsageError, VerificationFailed


class Malformed(FormatError):
    """Bytes of a signature, a certificate or an answer do not follow their format."""

    code = "E_SIGNATURE_FORMAT"


class BadSignature(VerificationFailed):
    """A signature was not made by this key over these bytes."""

    code = "E_SIGNATURE"


class PolicyFault(UsageError):
    """A policy, or a file that it names, is not what it must be; the message names the file."""

    code = "E_POLICY"


class BadSigner(UsageError):
    """A key or a certificate that something is to be signed with cannot be used."""

    code = "E_SIGNER"


class Untrusted(VerificationFailed):
    """The policy asks for a signature that this image does not have."""

    code = "E_UNTRUSTED"


class CannotTell(Unavailable):
    """Whether the image is trusted could not be found out: something is away or out of date."""

    code = "E_TRUST_UNKNOWN"


TRUST_ERRORS = (Untrusted, CannotTell, PolicyFault)
"""Why an image is refused by a policy: whoever meets one passes it on as it is."""
