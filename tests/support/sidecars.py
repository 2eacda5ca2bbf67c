"""XMP sidecars in the form in which digiKam, darktable and Lightroom write them, made by hand."""

from __future__ import annotations

DIGIKAM = """<?xml version="1.0" encoding="UTF-8"?>
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:digiKam="http://www.digikam.org/ns/1.0/"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:MicrosoftPhoto="http://ns.microsoft.com/photo/1.0/"
    digiKam:PickLabel="0"
    digiKam:ColorLabel="3"
    xmp:Rating="4"
    xmp:MetadataDate="2024-05-01T10:00:00+02:00">
   <digiKam:TagsList>
    <rdf:Seq>
     <rdf:li>People/Anna &amp; Béla</rdf:li>
     <rdf:li>Places/Zürich</rdf:li>
    </rdf:Seq>
   </digiKam:TagsList>
   <dc:subject>
    <rdf:Bag>
     <rdf:li>Anna &gt; Béla</rdf:li>
    </rdf:Bag>
   </dc:subject>
   <!-- kept by hand -->
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>
"""

DARKTABLE = """<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:exif="http://ns.adobe.com/exif/1.0/"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:xmpMM="http://ns.adobe.com/xap/1.0/mm/"
    xmlns:darktable="http://darktable.sf.net/"
   exif:DateTimeOriginal="2023:07:09 18:12:41.000"
   xmp:Rating="1"
   xmpMM:DerivedFrom="a.jpg"
   darktable:import_timestamp="63824609921000000"
   darktable:change_timestamp="-1"
   darktable:xmp_version="5"
   darktable:raw_params="0"
   darktable:auto_presets_applied="1"
   darktable:history_end="2"
   darktable:iop_order_version="2">
   <darktable:masks_history>
    <rdf:Seq/>
   </darktable:masks_history>
   <darktable:history>
    <rdf:Seq>
     <rdf:li
      darktable:num="0"
      darktable:operation="exposure"
      darktable:enabled="1"
      darktable:modversion="7"
      darktable:params="00000000000000003333933f00004842000080c0"
      darktable:multi_name="a &gt; b"
      darktable:multi_name_hand_edited="0"
      darktable:multi_priority="0"
      darktable:blendop_version="13"
      darktable:blendop_params="gz11eJxjYGBgkGAAgRNODGiAEV0AJ2iwh+CRyscOAAdeGQQ="/>
    </rdf:Seq>
   </darktable:history>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""

# Adobe leaves space for later edits.
LIGHTROOM = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="Adobe XMP Core 7.0-c000 1.000000, 0000/00/00-00:00:00">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/"
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:lr="http://ns.adobe.com/lightroom/1.0/"
    xmlns:crs="http://ns.adobe.com/camera-raw-settings/1.0/"
   xmp:CreatorTool="Ver.1.00"
   xmp:MetadataDate="2024-02-03T04:05:06+01:00"
   photoshop:Instructions="first line&#xA;second line"
   crs:Version="15.4"
   crs:ProcessVersion="11.0"
   crs:Exposure2012="+0.35"
   crs:ToneCurveName2012='Linear "soft"'
   crs:HasSettings="True">
   <dc:subject>
    <rdf:Bag>
     <rdf:li>Alps</rdf:li>
    </rdf:Bag>
   </dc:subject>
   <lr:hierarchicalSubject>
    <rdf:Bag>
     <rdf:li>Travel|Alps</rdf:li>
    </rdf:Bag>
   </lr:hierarchicalSubject>
   <crs:ToneCurvePV2012>
    <rdf:Seq>
     <rdf:li>0, 0</rdf:li>
     <rdf:li>255, 255</rdf:li>
    </rdf:Seq>
   </crs:ToneCurvePV2012>
   <dc:description>
    <rdf:Alt>
     <rdf:li xml:lang="x-default"/>
    </rdf:Alt>
   </dc:description>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
PADDING<?xpacket end="w"?>
""".replace("PADDING", f"{' ' * 80}\n" * 2)

OTHER_PREFIXES = """<x:xmpmeta xmlns:x='adobe:ns:meta/'>
 <r:RDF xmlns:r='http://www.w3.org/1999/02/22-rdf-syntax-ns#'>
  <r:Description r:about='uuid:4f0' xmlns:purl='http://purl.org/dc/elements/1.1/'>
   <purl:description>
    <r:Alt>
     <r:li xml:lang='de'></r:li>
     <r:li xml:lang='fr'>Un lac dans les Alpes</r:li>
    </r:Alt>
   </purl:description>
  </r:Description>
 </r:RDF>
</x:xmpmeta>
"""
"""A valid packet of no particular program, with a description in one language only."""

ALL = {"digiKam": DIGIKAM, "darktable": DARKTABLE, "Lightroom": LIGHTROOM}
"""Every sidecar, by the program that writes such a file."""
