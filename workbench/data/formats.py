"""In and out: the one door to the file formats that become a dataset, or that a dataset becomes.

Knows: which there are. Each lives in a module of its own.
"""

from workbench.data.coco import import_coco
from workbench.data.coco_out import export_coco
from workbench.data.image_folder import import_folder
from workbench.data.image_folder_out import export_folder
from workbench.data.llava_json import BadRecord, export_llava, import_llava, read_conversations

__all__ = [
    "BadRecord",
    "export_coco",
    "export_folder",
    "export_llava",
    "import_coco",
    "import_folder",
    "import_llava",
    "read_conversations",
]
