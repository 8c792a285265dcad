"""Adapters that make neurons and layers native types of a framework: ``snntorch``, ``spikingjelly``.

Installed as ``snn_fr_plugin.integrations``. Importing the folder under another name would create a second
copy of every class, and ``isinstance`` would fail between the copies.
"""

if __name__ != "snn_fr_plugin.integrations":
    raise ImportError(
        f"import this package as 'snn_fr_plugin.integrations', not as {__name__!r}: "
        "two copies of its classes would not recognise each other"
    )
