"""From a FLAIR file to a corrected, masked image with the template's white matter on its grid."""
