"""Class names of public data sets, in the order that the released GiT models (GSVA: ``..._182``) were trained with.

Only lists that the files of the data set do not carry themselves stand here. Source: the data sets' own documentation,
as used by the GiT authors (their spelling is kept, because the words are what the model reads).
"""

from __future__ import annotations


def _split(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.replace("\n", " ").split("|"))


CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "coco": _split(
        """person | bicycle | car | motorcycle | airplane | bus | train | truck | boat | traffic light | fire hydrant |
        stop sign | parking meter | bench | bird | cat | dog | horse | sheep | cow | elephant | bear | zebra |
        giraffe | backpack | umbrella | handbag | tie | suitcase | frisbee | skis | snowboard | sports ball | kite |
        baseball bat | baseball glove | skateboard | surfboard | tennis racket | bottle | wine glass | cup | fork |
        knife | spoon | bowl | banana | apple | sandwich | orange | broccoli | carrot | hot dog | pizza | donut |
        cake | chair | couch | potted plant | bed | dining table | toilet | tv | laptop | mouse | remote | keyboard |
        cell phone | microwave | oven | toaster | sink | refrigerator | book | clock | vase | scissors | teddy bear |
        hair drier | toothbrush"""
    ),
    "ade20k": _split(
        """wall | building | sky | floor | tree | ceiling | road | bed | windowpane | grass | cabinet | sidewalk |
        person | earth | door | table | mountain | plant | curtain | chair | car | water | painting | sofa | shelf |
        house | sea | mirror | rug | field | armchair | seat | fence | desk | rock | wardrobe | lamp | bathtub |
        railing | cushion | base | box | column | signboard | chest of drawers | counter | sand | sink | skyscraper |
        fireplace | refrigerator | grandstand | path | stairs | runway | case | pool table | pillow | screen door |
        stairway | river | bridge | bookcase | blind | coffee table | toilet | flower | book | hill | bench |
        countertop | stove | palm | kitchen island | computer | swivel chair | boat | bar | arcade machine | hovel |
        bus | towel | light | truck | tower | chandelier | awning | streetlight | booth | television receiver |
        airplane | dirt track | apparel | pole | land | bannister | escalator | ottoman | bottle | buffet | poster |
        stage | van | ship | fountain | conveyer belt | canopy | washer | plaything | swimming pool | stool | barrel |
        basket | waterfall | tent | bag | minibike | cradle | oven | ball | food | step | tank | trade name |
        microwave | pot | animal | bicycle | lake | dishwasher | screen | blanket | sculpture | hood | sconce | vase |
        traffic light | tray | ashcan | fan | pier | crt screen | plate | monitor | bulletin board | shower |
        radiator | glass | clock | flag"""
    ),
    "voc": _split(
        """aeroplane | bicycle | bird | boat | bottle | bus | car | cat | chair | cow | diningtable | dog | horse |
        motorbike | person | pottedplant | sheep | sofa | train | tvmonitor"""
    ),
    "cityscapes_instances": _split("person | rider | car | truck | bus | train | motorcycle | bicycle"),
    "cityscapes": _split(
        """road | sidewalk | building | wall | fence | pole | traffic light | traffic sign | vegetation | terrain |
        sky | person | rider | car | truck | bus | train | motorcycle | bicycle"""
    ),
    "bdd100k_boxes": _split(
        """pedestrian | rider | car | truck | bus | train | motorcycle | bicycle | traffic light | traffic sign"""
    ),
    "bdd100k_instances": _split("pedestrian | rider | car | truck | bus | train | motorcycle | bicycle"),
    "nuimages": _split(
        """car | truck | trailer | bus | construction_vehicle | bicycle | motorcycle | pedestrian | traffic_cone |
        barrier"""
    ),
    "nuimages_semantic": _split(
        """animal | adult pedestrian | child pedestrian | construction worker | portable personal mobility vehicle |
        police officer | stroller | wheelchair | barrier | debris | pushable pullable objects | traffic cone |
        bicycle rack | bicycle | bendy bus | rigid bus | car | construction vehicle | ambulance | police vehicle |
        motorcycle | trailer | truck | driveable_surface | sidewalk | terrain | flat.other | static.manmade |
        static.vegetation | static.other | ego vehicle"""
    ),
    "coco_stuff": _split(
        """person | bicycle | car | motorcycle | airplane | bus | train | truck | boat | traffic light | fire hydrant |
        stop sign | parking meter | bench | bird | cat | dog | horse | sheep | cow | elephant | bear | zebra |
        giraffe | backpack | umbrella | handbag | tie | suitcase | frisbee | skis | snowboard | sports ball | kite |
        baseball bat | baseball glove | skateboard | surfboard | tennis racket | bottle | wine glass | cup | fork |
        knife | spoon | bowl | banana | apple | sandwich | orange | broccoli | carrot | hot dog | pizza | donut |
        cake | chair | couch | potted plant | bed | dining table | toilet | tv | laptop | mouse | remote | keyboard |
        cell phone | microwave | oven | toaster | sink | refrigerator | book | clock | vase | scissors | teddy bear |
        hair drier | toothbrush | banner | blanket | branch | bridge | building-other | bush | cabinet | cage |
        cardboard | carpet | ceiling-other | ceiling-tile | cloth | clothes | clouds | counter | cupboard | curtain |
        desk-stuff | dirt | door-stuff | fence | floor-marble | floor-other | floor-stone | floor-tile | floor-wood |
        flower | fog | food-other | fruit | furniture-other | grass | gravel | ground-other | hill | house | leaves |
        light | mat | metal | mirror-stuff | moss | mountain | mud | napkin | net | paper | pavement | pillow |
        plant-other | plastic | platform | playingfield | railing | railroad | river | road | rock | roof | rug |
        salad | sand | sea | shelf | sky-other | skyscraper | snow | solid-other | stairs | stone | straw |
        structural-other | table | tent | textile-other | towel | tree | vegetable | wall-brick | wall-concrete |
        wall-other | wall-panel | wall-stone | wall-tile | wall-wood | water-other | waterdrops | window-blind |
        window-other | wood"""
    ),
    "coco_stuff_182": _split(
        """person | bicycle | car | motorcycle | airplane | bus | train | truck | boat | traffic light | fire hydrant |
        street sign | stop sign | parking meter | bench | bird | cat | dog | horse | sheep | cow | elephant | bear |
        zebra | giraffe | hat | backpack | umbrella | shoe | eye glasses | handbag | tie | suitcase | frisbee | skis |
        snowboard | sports ball | kite | baseball bat | baseball glove | skateboard | surfboard | tennis racket | bottle
        | plate | wine glass | cup | fork | knife | spoon | bowl | banana | apple | sandwich | orange | broccoli |
        carrot | hot dog | pizza | donut | cake | chair | couch | potted plant | bed | mirror | dining table | window |
        desk | toilet | door | tv | laptop | mouse | remote | keyboard | cell phone | microwave | oven | toaster | sink
        | refrigerator | blender | book | clock | vase | scissors | teddy bear | hair drier | toothbrush | hair brush |
        banner | blanket | branch | bridge | building-other | bush | cabinet | cage | cardboard | carpet | ceiling-other
        | ceiling-tile | cloth | clothes | clouds | counter | cupboard | curtain | desk-stuff | dirt | door-stuff |
        fence | floor-marble | floor-other | floor-stone | floor-tile | floor-wood | flower | fog | food-other | fruit |
        furniture-other | grass | gravel | ground-other | hill | house | leaves | light | mat | metal | mirror-stuff |
        moss | mountain | mud | napkin | net | paper | pavement | pillow | plant-other | plastic | platform |
        playingfield | railing | railroad | river | road | rock | roof | rug | salad | sand | sea | shelf | sky |
        skyscraper | snow | solid-other | stairs | stone | straw | structural-other | table | tent | textile-other |
        towel | tree | vegetable | wall-brick | wall-concrete | wall-other | wall-panel | wall-stone | wall-tile |
        wall-wood | water-other | waterdrops | window-blind | window-other | wood"""
    ),
    "pascal_context_59": _split(
        """aeroplane | bag | bed | bedclothes | bench | bicycle | bird | boat | book | bottle | building | bus |
        cabinet | car | cat | ceiling | chair | cloth | computer | cow | cup | curtain | dog | door | fence | floor |
        flower | food | grass | ground | horse | keyboard | light | motorbike | mountain | mouse | person | plate |
        platform | pottedplant | road | rock | sheep | shelves | sidewalk | sign | sky | snow | sofa | table | track |
        train | tree | truck | tvmonitor | wall | water | window | wood"""
    ),
    "mapillary_v2": _split(
        """Bird | Ground Animal | Ambiguous Barrier | Concrete Block | Curb | Fence | Guard Rail | Barrier |
        Road Median | Road Side | Lane Separator | Temporary Barrier | Wall | Bike Lane | Crosswalk - Plain |
        Curb Cut | Driveway | Parking | Parking Aisle | Pedestrian Area | Rail Track | Road | Road Shoulder |
        Service Lane | Sidewalk | Traffic Island | Bridge | Building | Garage | Tunnel | Person | Person Group |
        Bicyclist | Motorcyclist | Other Rider | Lane Marking - Dashed Line | Lane Marking - Straight Line |
        Lane Marking - Zigzag Line | Lane Marking - Ambiguous | Lane Marking - Arrow (Left) |
        Lane Marking - Arrow (Other) | Lane Marking - Arrow (Right) | Lane Marking - Arrow (Split Left or Straight) |
        Lane Marking - Arrow (Split Right or Straight) | Lane Marking - Arrow (Straight) | Lane Marking - Crosswalk |
        Lane Marking - Give Way (Row) | Lane Marking - Give Way (Single) | Lane Marking - Hatched (Chevron) |
        Lane Marking - Hatched (Diagonal) | Lane Marking - Other | Lane Marking - Stop Line |
        Lane Marking - Symbol (Bicycle) | Lane Marking - Symbol (Other) | Lane Marking - Text |
        Lane Marking (only) - Dashed Line | Lane Marking (only) - Crosswalk | Lane Marking (only) - Other |
        Lane Marking (only) - Test | Mountain | Sand | Sky | Snow | Terrain | Vegetation | Water | Banner | Bench |
        Bike Rack | Catch Basin | CCTV Camera | Fire Hydrant | Junction Box | Mailbox | Manhole | Parking Meter |
        Phone Booth | Pothole | Signage - Advertisement | Signage - Ambiguous | Signage - Back |
        Signage - Information | Signage - Other | Signage - Store | Street Light | Pole | Pole Group |
        Traffic Sign Frame | Utility Pole | Traffic Cone | Traffic Light - General (Single) |
        Traffic Light - Pedestrians | Traffic Light - General (Upright) | Traffic Light - General (Horizontal) |
        Traffic Light - Cyclists | Traffic Light - Other | Traffic Sign - Ambiguous | Traffic Sign (Back) |
        Traffic Sign - Direction (Back) | Traffic Sign - Direction (Front) | Traffic Sign (Front) |
        Traffic Sign - Parking | Traffic Sign - Temporary (Back) | Traffic Sign - Temporary (Front) | Trash Can |
        Bicycle | Boat | Bus | Car | Caravan | Motorcycle | On Rails | Other Vehicle | Trailer | Truck |
        Vehicle Group | Wheeled Slow | Water Valve | Car Mount | Dynamic | Ego Vehicle | Ground | Static | Unlabeled"""
    ),
    "sun_rgbd": _split(
        """wall | floor | cabinet | bed | chair | sofa | table | door | window | bookshelf | picture | counter |
        blinds | desk | shelves | curtain | dresser | pillow | mirror | floor mat | clothes | ceiling | books |
        refridgerator | television | paper | towel | shower curtain | box | whiteboard | person | night stand | toilet |
        sink | lamp | bathtub | bag"""
    ),
    "drive": _split("background | vessel"),
    "loveda": _split("background | building | road | water | barren | forest | agricultural"),
    "potsdam": _split("impervious_surface | building | low_vegetation | tree | car | clutter"),
    "wider_face": _split("face"),
    "crowdhuman": _split("person"),
    "deepfashion": _split(
        """top | skirt | leggings | dress | outer | pants | bag | neckwear | headwear | eyeglass | belt | footwear |
        hair | skin | face"""
    ),
}
"""Data set to class names, indexed by class id."""

COCO_CATEGORY_IDS: tuple[int, ...] = tuple(
    number for number in range(1, 91) if number not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
)
"""Category ids of the 80 COCO classes: 1 to 90 with ten gaps."""
