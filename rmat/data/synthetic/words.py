"""Words that keys are made of."""

_ADJECTIVES = """
able amber ample arctic autumn bashful blue bold brass brave breezy brief bright brisk broad bronze calm candid
careful cheerful chilly civil clean clever cloudy copper coral cosy crimson curly dapper daring deep distant dusty eager
early earnest empty fair famous fancy fierce floral fluent fond frosty gentle giant glad golden grand grateful green
handy happy hasty hidden hollow honest humble hungry icy idle ivory jolly keen kind lavish lazy light lively lonely lucky
mellow merry mighty misty modest narrow neat nimble noble olive pale patient plain polite proud purple quick quiet rapid
restless rosy royal rustic salty scarlet secret shiny silent silver simple sleepy slender solid spare steady stormy sunny
tidy tiny tranquil upright vast velvet violet warm wild windy witty woolen yellow young zesty
"""

_NOUNS = """
acorn anchor apron arrow badger balcony banjo barrel basket beacon beaver bell blanket bottle bridge bucket button cabin
candle canyon carpet castle cedar chapel cherry chimney clock cobbler comet compass cottage cradle cricket curtain desert
dolphin donkey drum eagle engine falcon feather fence ferry fiddle finch forest fountain fox garden gate ginger glacier
goblet hammer harbor hedge heron hill island jacket jungle kettle kite ladder lagoon lantern lemon lighthouse lizard
locket magnet maple market meadow mirror mitten monkey mountain needle oak orchard otter oven paddle parrot pebble pencil
pepper piano pigeon pillow planet pocket puzzle quilt rabbit raven ribbon river rocket saddle sailor school shadow shovel
sparrow spoon squirrel statue teapot temple thimble tiger tower tractor trumpet tulip tunnel turtle valley village violin
wagon walnut whistle window zebra
"""

ADJECTIVES = tuple(_ADJECTIVES.split())
NOUNS = tuple(_NOUNS.split())
