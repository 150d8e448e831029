"use strict";
startFilters();
startTables();
startCharts();
startGallery();
