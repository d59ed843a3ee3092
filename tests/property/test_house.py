"""Our own domains live together on one log, whatever befalls the processes that run them.

The machine of the kit, over the engine and all the domains there are. By day it is a look; the
night has the examples.
"""

from hypothesis import settings

from domains.code import code
from domains.finance import finance
from qntx_es.pulse import pulse
from qntx_es.testing import machine

BY_DAY, BY_NIGHT = 3, 300
IS_NIGHT = settings().max_examples > BY_NIGHT

TestHouse = machine(code, finance, pulse, on="both", examples=BY_NIGHT if IS_NIGHT else BY_DAY)
