"""In and out: the one door to the file formats that become a dataset, or that a dataset becomes.

Knows: which there are. Each lives in a module of its own.
"""

from workbench.data.coco import import_coco
from workbench.data.coco_out import export_coco
from workbench.data.hf_datasets import export_hf, import_hf
from workbench.data.image_folder import import_folder
from workbench.data.image_folder_out import export_folder
from workbench.data.json_records import BadRecord
from workbench.data.llava_json import export_llava, import_llava, read_conversations
from workbench.data.pdf import import_pdf
from workbench.data.sharegpt import export_sharegpt, import_sharegpt, read_sharegpt

__all__ = [
    "BadRecord",
    "export_coco",
    "export_folder",
    "export_hf",
    "export_llava",
    "export_sharegpt",
    "import_coco",
    "import_folder",
    "import_hf",
    "import_llava",
    "import_pdf",
    "import_sharegpt",
    "read_conversations",
    "read_sharegpt",
]
