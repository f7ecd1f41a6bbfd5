from rlhf.job import main
from rlhf.publisher.config import PublisherConfig
from rlhf.publisher.stage import run

main("publisher", PublisherConfig, run)
