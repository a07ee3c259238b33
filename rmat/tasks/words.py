"""Words that keys, names and facts are made of."""

_ADJECTIVES = """
able amber ample arctic autumn bashful blue bold brass brave breezy brief bright brisk broad bronze calm
candid careful cheerful chilly civil clean clever cloudy copper coral cosy crimson curly dapper daring deep
distant dusty eager early earnest empty fair famous fancy fierce floral fluent fond frosty gentle giant glad
golden grand grateful green handy happy hasty hidden hollow honest humble hungry icy idle ivory jolly keen
kind lavish lazy light lively lonely lucky mellow merry mighty misty modest narrow neat nimble noble olive
pale patient plain polite proud purple quick quiet rapid restless rosy royal rustic salty scarlet secret shiny
silent silver simple sleepy slender solid spare steady stormy sunny tidy tiny tranquil upright vast velvet
violet warm wild windy witty woolen yellow young zesty
"""

_NOUNS = """
acorn anchor apron arrow badger balcony banjo barrel basket beacon beaver bell blanket bottle bridge bucket
button cabin candle canyon carpet castle cedar chapel cherry chimney clock cobbler comet compass cottage
cradle cricket curtain desert dolphin donkey drum eagle engine falcon feather fence ferry fiddle finch forest
fountain fox garden gate ginger glacier goblet hammer harbor hedge heron hill island jacket jungle kettle kite
ladder lagoon lantern lemon lighthouse lizard locket magnet maple market meadow mirror mitten monkey mountain
needle oak orchard otter oven paddle parrot pebble pencil pepper piano pigeon pillow planet pocket puzzle
quilt rabbit raven ribbon river rocket saddle sailor school shadow shovel sparrow spoon squirrel statue teapot
temple thimble tiger tower tractor trumpet tulip tunnel turtle valley village violin wagon walnut whistle
window zebra
"""

ADJECTIVES = tuple(_ADJECTIVES.split())
NOUNS = tuple(_NOUNS.split())

_NAMES = """
Ada Agnes Alma Amir Anton Arlo Astrid Basil Bella Bruno Carla Casper Cedric Celia Chloe Clara Conrad Cyrus
Dahlia Damian Daphne Diego Dora Edgar Edith Elena Elias Emil Enzo Esther Ezra Felix Fiona Flora Frida Gareth
Gemma Gideon Greta Gustav Hanna Harvey Hazel Hector Heidi Hugo Ida Igor Imogen Ingrid Iris Isaac Ivan Jasper
Joana Jonas Julia Juno Karim Katya Kiran Lars Leila Leon Lila Linus Lorenzo Lucia Ludwig Luna Magnus Malik
Marta Matteo Maya Mila Milo Mina Mirko Nadia Naomi Nils Nora Oliver Omar Oscar Otto Paula Pedro Petra Philip
Quentin Rafael Rex Rita Robin Rocco Rosa Rufus Sami Selma Simon Sofia Stella Sven Tamara Tariq Thea Theo Tilda
Tobias Ursula Vera Victor Viola Wanda Wesley Willa Xenia Yara Yusuf Zelda
"""

_CITIES = """
Accra Amsterdam Ankara Antwerp Athens Baku Bangkok Barcelona Basel Beirut Belgrade Bergen Berlin Bilbao Bogota
Bologna Boston Bremen Brisbane Bristol Brussels Budapest Cairo Calgary Cardiff Chicago Cologne Copenhagen
Cordoba Dakar Dallas Delhi Denver Detroit Dresden Dublin Durban Edinburgh Florence Geneva Genoa Ghent Glasgow
Granada Hamburg Hanoi Havana Helsinki Istanbul Jakarta Kathmandu Krakow Kyoto Lagos Leeds Leipzig Lille Lima
Lisbon Liverpool London Lyon Madrid Malaga Manila Marseille Melbourne Milan Montreal Mumbai Munich Nairobi
Nantes Naples Nashville Osaka Oslo Ottawa Oxford Palermo Paris Perth Porto Prague Quebec Quito Riga Rome
Rotterdam Salzburg Santiago Seattle Seoul Seville Sofia Stockholm Sydney Tallinn Tampere Tokyo Toronto Trieste
Tunis Turin Utrecht Valencia Vancouver Venice Verona Vienna Vilnius Warsaw Zagreb Zurich
"""

_COLORS = """
amber azure beige black blue bronze brown cream crimson cyan gold gray green indigo ivory khaki lavender lilac
magenta maroon mauve mustard olive orange peach pink plum purple red rose ruby rust sapphire scarlet silver
tan teal turquoise violet white yellow
"""

_ANIMALS = """
alpaca antelope armadillo badger bat bear beaver bison boar buffalo camel cheetah cobra cougar coyote crab
crane crocodile crow deer dingo dolphin donkey dove eagle eel elephant elk falcon ferret flamingo fox frog
gazelle gecko gibbon giraffe goat goose gorilla hamster hare hawk hedgehog heron hippo hyena iguana jackal
jaguar kangaroo koala lemur leopard lion lizard llama lynx magpie meerkat mole moose mouse octopus ostrich
otter owl panda panther parrot pelican penguin pony puffin python rabbit raccoon raven salmon seal shark sheep
skunk sloth snail spider squid stork swan tiger toad tortoise turtle walrus weasel whale wolf wombat yak zebra
"""

_DISHES = """
apples asparagus bagels bananas beans biscuits blueberries bread broccoli burritos cabbage cake carrots
cashews celery cheese cherries chocolate coconut cookies couscous crackers cucumber curry dates dumplings
eggplant falafel figs fondue garlic goulash grapes gnocchi hazelnuts honey hummus kale lasagna leeks lemons
lentils lobster mango melon muesli mushrooms mussels noodles nougat oatmeal olives omelettes onions oranges
paella pancakes papaya pasta peaches peanuts pears peppers pickles pies pineapple pistachios pizza plums
porridge potatoes pretzels pumpkin quiche radishes raisins ravioli risotto salad sausages shrimp soup spinach
strawberries sushi tacos toast tofu tomatoes trout tuna waffles walnuts yogurt zucchini
"""

NAMES = tuple(_NAMES.split())
CITIES = tuple(_CITIES.split())
COLORS = tuple(_COLORS.split())
ANIMALS = tuple(_ANIMALS.split())
DISHES = tuple(_DISHES.split())
