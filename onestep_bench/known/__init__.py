"""What is known by name: the catalogue of it, what a parameter may be, and what plug-ins bring from outside.

The catalogue is read from the sources, so that a plan can refuse a wrong name without importing torch; `begin` checks
a notebook's parameters by the same table; a plug-in registers what it brings as the files of the package do.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"values": ["begin"], "plugins": ["load"]},
)
