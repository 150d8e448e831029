"""Explanation methods: one per file, named as its config; `base.py` says what a method is."""

FAMILIES = {
    "CAM layer": (
        "cam",
        "gradcam",
        "gradcam_pp",
        "xgradcam",
        "layercam",
        "hirescam",
        "counterfactual_gradcam",
        "igcam",
        "expected_gradcam",
        "smooth_gradcam_pp",
        "ablationcam",
        "scorecam",
    ),
    "several layers": ("sise", "ada_sise", "fullgrad"),
    "input gradient": (
        "gradient",
        "smoothgrad",
        "integrated_gradients",
        "deeplift",
        "guided_backprop",
        "guided_gradcam",
    ),
    "perturbation": ("rise", "occlusion", "extremal_perturbation"),
    "control": ("uniform", "random", "center", "edges", "fake_cam", "oracle"),
}
"""What a method looks at. Controls explain nothing: they are reference rows and take no part in a ranking."""
