"""XMP packets: a caption is merged into one, and all other bytes of the packet stay the same.

XMP is RDF in XML (ISO 16684-1; XMP Specification Part 1, 2012). A packet is untrusted input: a DTD,
and with it every entity, is refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from xml.parsers import expat

MOST_BYTES = 2**24
"""Packets of more bytes are refused. Lightroom's masks can make one of some MiB."""

Name = tuple[str, str]
"""Namespace and local name of an element or an attribute."""

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_DC = "http://purl.org/dc/elements/1.1/"
_XMP = "http://ns.adobe.com/xap/1.0/"
_IPTC = "http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/"
OURS = "urn:idefics-cli:xmp:1.0:"
"""Namespace of the digests of texts that this program wrote."""
_PREFIXES = {_DC: "dc", _XMP: "xmp", _IPTC: "Iptc4xmpCore", OURS: "idefics_cli"}

DESCRIPTION: Name = (_DC, "description")
ALT_TEXT: Name = (_IPTC, "AltTextAccessibility")
KEYWORDS: Name = (_DC, "subject")
DATES: tuple[Name, ...] = (
    ("http://ns.adobe.com/exif/1.0/", "DateTimeOriginal"),
    ("http://ns.adobe.com/photoshop/1.0/", "DateCreated"),
    (_XMP, "CreateDate"),
)
"""When a picture was taken, the best property first."""
_DATE: Name = (_XMP, "MetadataDate")
_DIGESTS: Mapping[Name, Name] = {
    DESCRIPTION: (OURS, "captionDigest"),
    ALT_TEXT: (OURS, "altTextDigest"),
}
_LANGUAGE: Name = ("http://www.w3.org/XML/1998/namespace", "lang")
_DEFAULT = "x-default"

_NEW = b"""<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="idefics-cli">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
 </rdf:RDF>
</x:xmpmeta>
"""
# Patterns for a tag, and for an attribute in it, of XML that expat has accepted. The value of an
# attribute may contain `>`.
_TAG = re.compile(rb"""<(?:[^"'<>]|"[^"<]*"|'[^'<]*')*+>""")
_ATTRIBUTE = re.compile(rb"""\s([^\s=<>"'/]++)\s*+=\s*+("[^"<]*"|'[^'<]*')""")
# These characters are removed, because XML 1.0 does not allow them.
_NOT_XML = re.compile("[\ufffe\uffff\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Text:
    """The text of a property.

    Attributes:
        text: The text; "" if there is none.
        is_ours: Whether this program wrote it, and nobody changed it since.
    """

    text: str = ""
    is_ours: bool = False


class Packet:
    """An XMP packet that was read.

    Args:
        data: The packet; empty for a new one.

    Raises:
        ValueError: If it is no XMP packet in UTF-8, is too large, or has a DTD. The message is the
            end of a sentence.
    """

    def __init__(self, data: bytes = b"") -> None:
        self._data = data or _NEW
        if len(self._data) > MOST_BYTES:
            raise ValueError("it is larger than 16 MiB")
        root = _parsed(self._data)
        rdf = next((node for node in root.all_below() if node.name == (_RDF, "RDF")), None)
        if rdf is None:
            raise ValueError("it has no rdf:RDF, so it is no XMP")
        self._rdf = rdf
        self._subjects = [node for node in rdf.children if node.name == (_RDF, "Description")]

    def text(self, name: Name) -> Text:
        """Return the text of the property *name*, preferably in the default language.

        A text that stands in an attribute or without languages counts, although it is not valid.
        """
        found = self._attribute(name)
        text = found.value if found else ""
        if (node := self._element(name)) is not None:
            items = [item for item in node.all_below() if item.name == (_RDF, "li")]
            texts = [item.all_text() for item in _default_first(items)] or [node.all_text()]
            text = next(filter(None, map(str.strip, texts)), "")
        text = text.strip()
        return Text(text, is_ours=bool(text) and self._value(_DIGESTS[name]) == digest_of(text))

    def items(self, *names: Name) -> list[str]:
        """Return all items of the properties *names*, or their values if they are no lists."""
        found: list[str] = []
        for name in names:
            node = self._element(name)
            items = [item for item in node.all_below() if item.name == (_RDF, "li")] if node else []
            found += [item.all_text().strip() for item in items] or [self._value(name)]
        return list(filter(None, found))

    def with_texts(self, texts: Mapping[Name, Text], *, date: str) -> bytes:
        """Return the packet with *texts*, and no other change but the date of its metadata.

        Args:
            texts: `DESCRIPTION` or `ALT_TEXT` -> its text, which is not empty. A text that has
                words of a person in it is not ours.
            date: The value of xmp:MetadataDate.
        """
        edits: list[_Edit] = []
        added: list[bytes] = []
        for name, text in texts.items():
            self._set_text(name, text.text, edits, added)
            digest = digest_of(text.text) if text.is_ours else ""
            if digest or self._value(_DIGESTS[name]):
                self._set_value(_DIGESTS[name], digest, edits, added)
        self._set_value(_DATE, date, edits, added)
        if added:
            self._add(b"".join(added), edits)
        data = self._data
        for edit in sorted(edits, key=lambda edit: edit.start, reverse=True):
            data = data[: edit.start] + edit.new + data[edit.end :]
        return data

    def _element(self, name: Name) -> _Element | None:
        nodes = (node for subject in self._subjects for node in subject.children)
        return next((node for node in nodes if node.name == name), None)

    def _attribute(self, name: Name) -> _Attribute | None:
        found = (subject.attributes.get(name) for subject in self._subjects)
        return next((attribute for attribute in found if attribute), None)

    def _value(self, name: Name) -> str:
        node, attribute = self._element(name), self._attribute(name)
        return node.all_text().strip() if node else attribute.value if attribute else ""

    def _set_text(self, name: Name, text: str, edits: list[_Edit], added: list[bytes]) -> None:
        node = self._element(name)
        if node is None:
            if (attribute := self._attribute(name)) is not None:
                edits.append(attribute.replaced(text))
            else:
                added.append(_property(name, _alternatives(text)))
            return
        alternatives = next((n for n in node.children if n.name == (_RDF, "Alt")), None)
        items = [item for item in node.all_below() if _is_default(item)]
        if items:
            edits.append(items[0].replaced(_escaped(text)))
        elif alternatives is not None:
            tag = alternatives.tag.removesuffix(b"Alt") + b"li"
            new = b'<%s xml:lang="x-default">%s</%s>' % (tag, _escaped(text), tag)
            edits.append(alternatives.beginning_with(new, self._data))
        else:
            edits.append(_Edit(node.start, node.end, _property(name, _alternatives(text)).strip()))

    def _set_value(self, name: Name, value: str, edits: list[_Edit], added: list[bytes]) -> None:
        node, attribute = self._element(name), self._attribute(name)
        if node is not None:
            edits.append(node.replaced(_escaped(value)))
        elif attribute is not None:
            edits.append(attribute.replaced(value))
        else:
            added.append(_property(name, _escaped(value)))

    def _add(self, properties: bytes, edits: list[_Edit]) -> None:
        """Add *properties* in a description of their own, about the same thing as the others."""
        abouts = (subject.attributes.get((_RDF, "about")) for subject in self._subjects)
        about = next((attribute.value for attribute in abouts if attribute), "")
        start = b'<rdf:Description xmlns:rdf="%s" rdf:about=%s>' % (_RDF.encode(), _quoted(about))
        new = b"%s%s\n  </rdf:Description>" % (start, properties)
        edits.append(self._rdf.ending_with(b" " + new + b"\n ", self._data))


@dataclass(frozen=True, slots=True)
class _Edit:
    """The bytes from *start* to *end* become *new*."""

    start: int
    end: int
    new: bytes


@dataclass(frozen=True, slots=True)
class _Attribute:
    """An attribute: its value, and where the value stands with its quotes."""

    value: str
    start: int
    end: int

    def replaced(self, value: str) -> _Edit:
        """Return the edit that makes *value* the value."""
        return _Edit(self.start, self.end, _quoted(value))


@dataclass(slots=True, eq=False)
class _Element:
    """An element: where it stands, and what it has.

    Attributes:
        name: Namespace and local name.
        tag: Name with its prefix, as it is written.
        start: Offset of its start tag.
        inner: Offset after its start tag.
        close: Offset of its end tag; equal to *end* if it has none, as in `<a/>`.
        end: Offset after the element.
    """

    name: Name = ("", "")
    tag: bytes = b""
    start: int = 0
    inner: int = 0
    close: int = 0
    end: int = 0
    attributes: dict[Name, _Attribute] = field(default_factory=dict)
    children: list[_Element] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def all_below(self) -> Iterator[_Element]:
        """Yield the elements in this one at any depth, in their order."""
        waiting = self.children[::-1]
        while waiting:
            node = waiting.pop()
            yield node
            waiting += reversed(node.children)

    def all_text(self) -> str:
        """Return the text in this element, and in those in it."""
        return "".join([*self.texts, *(text for node in self.all_below() for text in node.texts)])

    def replaced(self, content: bytes) -> _Edit:
        """Return the edit that replaces all content of an element."""
        if self.close == self.end:  # `/>` becomes a start tag and an end tag
            return _Edit(self.inner - 2, self.end, b">%s</%s>" % (content, self.tag))
        return _Edit(self.inner, self.close, content)

    def beginning_with(self, content: bytes, data: bytes) -> _Edit:
        """Return the edit that puts *content* before the other content, indented as it."""
        if self.close == self.end:
            return self.replaced(content)
        old = data[self.inner : self.close]
        return _Edit(self.inner, self.inner, old[: len(old) - len(old.lstrip())] + content)

    def ending_with(self, content: bytes, data: bytes) -> _Edit:
        """Return the edit that puts *content* after the other content."""
        if self.close == self.end:
            return self.replaced(b"\n " + content)
        space = b" " if data[self.inner : self.close].endswith(b"\n ") else b"\n "
        return _Edit(self.close, self.close, space + content)


def _is_default(item: _Element) -> bool:
    language = item.attributes.get(_LANGUAGE)
    return item.name == (_RDF, "li") and language is not None and language.value == _DEFAULT


def _default_first(items: list[_Element]) -> list[_Element]:
    return sorted(items, key=lambda item: not _is_default(item))


def _parsed(data: bytes) -> _Element:
    """Return an element that has the root element.

    Raises:
        ValueError: See `Packet`.
    """
    if b"\0" in data[:64]:
        raise ValueError("it is not UTF-8")
    reader = _PacketReader(data)
    try:
        reader.parser.Parse(data, True)
    except expat.ExpatError as error:
        raise ValueError(f"it is not XML: {error}") from error
    return reader.stack[0]


class _PacketReader:
    """Makes elements from what expat finds in *data*; the first one of the stack has the root."""

    def __init__(self, data: bytes) -> None:
        self.stack = [_Element()]
        self._data = data
        self.parser = expat.ParserCreate("UTF-8", namespace_separator=" ")
        self.parser.ordered_attributes = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = lambda text: self.stack[-1].texts.append(text)
        self.parser.StartDoctypeDeclHandler = _refuse_doctype

    def _start(self, name: str, attributes: list[str]) -> None:
        at = self.parser.CurrentByteIndex
        inner = _end_of_tag(self._data, at)
        tag = re.split(rb"[\s/>]", self._data[at + 1 : inner], maxsplit=1)[0]
        node = _Element(_split(name), tag, at, inner, inner, inner)
        found = _ATTRIBUTE.finditer(self._data, at, inner)
        # expat does not report namespace declarations. They are left out of *written* too, so that
        # each attribute is paired with its own match.
        written = [match for match in found if not _is_namespace(match[1])]
        values = iter(attributes)
        for key, value, match in zip(values, values, written, strict=True):
            node.attributes[_split(key)] = _Attribute(value, *match.span(2))
        self.stack[-1].children.append(node)
        self.stack.append(node)

    def _end(self, name: str) -> None:
        node = self.stack.pop()
        if not self._data.endswith(b"/>", 0, node.inner):
            node.close = self.parser.CurrentByteIndex
            node.end = _end_of_tag(self._data, node.close)


def _refuse_doctype(*_: object) -> None:
    raise ValueError("it has a DTD, which XMP must not have")


def _end_of_tag(data: bytes, start: int) -> int:
    match = _TAG.match(data, start)
    return match.end() if match else len(data)


def _split(name: str) -> Name:
    namespace, _, local = name.rpartition(" ")
    return namespace, local


def _is_namespace(name: bytes) -> bool:
    return name == b"xmlns" or name.startswith(b"xmlns:")


def digest_of(text: str) -> str:
    """Return the digest by which this program knows its *text* again."""
    return hashlib.sha256(_NOT_XML.sub("", text).strip().encode()).hexdigest()[:32]


def _escaped(text: str) -> bytes:
    text = _NOT_XML.sub("", text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("\r", "&#13;").encode()


def _quoted(text: str) -> bytes:
    value = _escaped(text).replace(b'"', b"&quot;")
    return b'"%s"' % value.replace(b"\n", b"&#10;").replace(b"\t", b"&#9;")


def _property(name: Name, content: bytes) -> bytes:
    namespace, local = name
    tag = f"{_PREFIXES[namespace]}:{local}".encode()
    declared = f'xmlns:{_PREFIXES[namespace]}="{namespace}"'.encode()
    return b"\n   <%s %s>%s</%s>" % (tag, declared, content, tag)


def _alternatives(text: str) -> bytes:
    item = b'<rdf:li xml:lang="x-default">%s</rdf:li>' % _escaped(text)
    return b'<rdf:Alt xmlns:rdf="%s">%s</rdf:Alt>' % (_RDF.encode(), item)
